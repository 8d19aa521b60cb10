"""The command line, thin: a file for a command or for two that share their options.

Every mistake ends in one clear line and exit code 2.
"""

from speedysnn.cli.process import leaving_at_once

with leaving_at_once():  # torch takes seconds
    from speedysnn.cli.main import app as app
    from speedysnn.cli.main import main as main
