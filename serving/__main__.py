"""`python -m mlflywheel.serving`: the predictor."""

import sys

from mlflywheel.errors import MlflywheelError
from mlflywheel.serving.arguments import parse_arguments, pin_threads


def main() -> int:
    """Serve what the command line says; return the exit code."""
    pin_threads()
    try:
        arguments = parse_arguments(sys.argv[1:])
        from mlflywheel.serving.server import serve

        return serve(arguments)
    except MlflywheelError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
