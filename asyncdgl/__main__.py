"""`asyncdgl`, and `python -m asyncdgl`: whoever presses Ctrl-C while it is still being imported sees no traceback."""

import signal

_is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _is_ours:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from asyncdgl.cli.main import main  # noqa: E402  # click, and what it needs, take a tenth of a second

if _is_ours:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    main()
