"""What every script shares: one clear sentence for a user's mistake, a traceback only when asked."""

import sys
from collections.abc import Callable


def run(main: Callable[[list[str]], None]) -> None:
    """Run ``main(argv)``; turn expected errors into one line on stderr and exit status 2.

    ``--traceback`` anywhere on the command line shows the full traceback instead. Ctrl-C exits with 130.
    """
    argv = sys.argv[1:]
    show_traceback = "--traceback" in argv
    argv = [argument for argument in argv if argument != "--traceback"]
    try:
        main(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if show_traceback:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message} (--traceback shows where)", file=sys.stderr)
        sys.exit(2)
