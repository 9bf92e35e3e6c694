"""The command serve: a checkpoint over HTTP, and a page. Parsing needs neither torch nor the extra."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
from typing import Any

from ..errors import AudiotagError, InvalidInputError, MissingDependencyError, OutputError
from .options import add_model
from .session import load_tagger

HOST, PORT = "127.0.0.1", 8000
MAX_SECONDS, MAX_BYTES = 3600.0, 1 << 30  # as in service.limits, which parsing does not import
TOKEN_VARIABLE = "AUDIOTAG_TOKEN"
# How long a thread may keep the interpreter's lock while others wait for it. Decoders and network want it for a moment
# many times a clip; behind the thread that answers they would wait up to 5 ms each time.
SWITCH_S = 0.0005

DESCRIPTION = """\
Serve a checkpoint: a page for people and an HTTP interface for programs, on this machine unless told otherwise. Nothing
is kept of what is sent. Ctrl-C and SIGTERM stop it after it has finished what it has.
"""
EXAMPLES = """\
examples:
  audiotag serve --open
  curl --data-binary @street.wav http://127.0.0.1:8000/v1/tag
  AUDIOTAG_TOKEN=... audiotag serve --host 0.0.0.0 --allowed-host sounds.example.org
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``serve`` to the command's parsers."""
    parser = commands.add_parser(
        "serve",
        help="a page and an HTTP service",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default=HOST, metavar="ADDRESS", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help="(default: %(default)s; 0: any)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    access = parser.add_argument_group("access")
    access.add_argument(
        "--token",
        metavar="T",
        help=f"what clients must send as Authorization: Bearer T; the variable {TOKEN_VARIABLE} keeps it out of "
        "process lists; needed where other machines can connect",
    )
    access.add_argument("--no-auth", action="store_true", help="let other machines ask without a token")
    access.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name this service is called by, such as behind a proxy; addresses and localhost always are",
    )
    access.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="pages of this origin may ask; repeat it"
    )
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument(
        "--max-seconds", type=float, default=MAX_SECONDS, metavar="S", help="longest recording (default: %(default)g)"
    )
    bounds.add_argument(
        "--max-bytes", type=int, default=MAX_BYTES, metavar="N", help="largest body (default: %(default)d)"
    )
    bounds.add_argument("--max-streams", type=int, metavar="N", help="live streams at once (default: 64)")
    bounds.add_argument("--grace", type=float, metavar="S", help="how long a stop waits for work (default: 30)")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    try:
        from ..service.guards import Access
        from ..service.limits import Limits
        from ..service.server import bound_socket, make_server
        from ..service.state import Service
    except ImportError as error:
        raise MissingDependencyError(
            f'serve needs more packages: pip install "audiotag-dymn[serve]" ({error})'
        ) from error

    if not 0 <= args.port <= 65535:
        raise InvalidInputError(f"--port must be from 0 to 65535, got {args.port}")
    loopback = _is_loopback(args.host)
    token = args.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not loopback and not args.no_auth:
        raise InvalidInputError(
            f"--host {args.host}: other machines can connect; set {TOKEN_VARIABLE} or --token, or say --no-auth"
        )
    origins = tuple(_origin(text) for text in args.cors)
    hosts = [name.lower() for name in args.allowed_host]
    if not loopback:
        hosts += [socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"]
    if not _is_address(args.host):
        hosts.append(args.host.lower())
    bounds: dict[str, Any] = {"max_streams": args.max_streams, "grace_s": args.grace}
    limits = Limits(
        max_seconds=args.max_seconds,
        max_bytes=args.max_bytes,
        **{name: value for name, value in bounds.items() if value is not None},
    )
    service = Service(lambda: load_tagger(args), limits, Access(token, tuple(hosts), origins, loopback))
    try:
        listening = bound_socket(args.host, args.port)
    except (OSError, OverflowError) as error:
        raise OutputError(f"{args.host}:{args.port}: cannot listen there: {error}; choose another --port") from error
    address, port = listening.getsockname()[:2]
    shown = "localhost" if address in ("0.0.0.0", "::") else f"[{address}]" if ":" in address else address
    url = f"http://{shown}:{port}/"
    print(f"audiotag: serving at {url}  (Ctrl-C stops)", file=sys.stderr, flush=True)
    if args.open:
        import webbrowser

        webbrowser.open(url)
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        make_server(service).run([listening])
    finally:
        sys.setswitchinterval(switch_s)
    failure = service.worker.failure
    if failure is not None:
        if isinstance(failure, AudiotagError):
            raise failure
        raise AudiotagError(f"the checkpoint could not be loaded: {type(failure).__name__}: {failure}") from failure
    return 0


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _origin(text: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise InvalidInputError(f"--cors must be an origin such as https://example.org, got {text!r}")
    return f"{parts.scheme}://{parts.netloc}"
