"""A child that sleeps as long as its work would take, a second for each of an entry's weight."""

import time

from audiotag.corpus.messages import Done, Finished, Ready
from audiotag.corpus.pipe import Served

if __name__ == "__main__":
    served = Served()
    served.receive()
    served.send(Ready())
    while True:
        job = served.receive()
        for place, entry in enumerate(job.entries):
            time.sleep(entry.weight)
            row = {"id": entry.path, "uri": entry.path, "start_s": 0.0, "end_s": entry.weight, "status": "ok"}
            served.send(Done(place, row))
        served.send(Finished())
