"""Print expected errors of a command as one sentence, without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dpn.common import early_stop
from dpn.common.errors import DPNError
from dpn.runs.request import ConfigError
from dpn.runs.signals import Interrupted


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print expected errors as one sentence and exit; other errors are raised as usual."""
    try:
        yield
    except ConfigError as error:
        _fail(str(error), 2)
    except (DPNError, OSError) as error:
        _fail(str(error), 1)
    except Interrupted as error:
        message = f"Stopped by {error}; the same command continues from the last checkpoint."
        _fail(message, early_stop.exit_status(str(error)))
    except KeyboardInterrupt:
        _fail("Stopped by SIGINT.", early_stop.exit_status("SIGINT"))


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
