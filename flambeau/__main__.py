"""``python -m flambeau`` is the ``flambeau`` command."""

from flambeau.app.cli import main

main()
