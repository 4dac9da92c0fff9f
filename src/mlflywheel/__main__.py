"""`python -m mlflywheel`: the command line."""

from mlflywheel.cli import main

if __name__ == "__main__":
    main()
