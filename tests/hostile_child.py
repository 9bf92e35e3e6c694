"""`audiotag.corpus.child` in which opening a file may end the process, hang, or take all memory, as its name says."""

import os
import signal
import time

from audiotag.corpus import items

opens = items.open_audio


def hostile_open(source, **options):
    name = str(source)
    if "segfault" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in name:
        time.sleep(1000)
    if "memory" in name:
        held = []
        while True:
            held.append(b"\1" * (1 << 25))
            time.sleep(0.01)
    if "once" in name and not os.path.exists(name + ".seen"):
        open(name + ".seen", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return opens(source, **options)


items.open_audio = hostile_open

if __name__ == "__main__":
    from audiotag.corpus.child import main

    main()
