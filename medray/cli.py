"""The `medray` command: one verb a stage, the same on a laptop and as a Ray job.

Engines, Ray and torch are imported inside the verbs that need them: `medray --help` and
`medray info` answer at once.
"""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType

import typer
from typer.exceptions import TyperException

from medray.errors import ConfigError, DataError, GateError, MedrayError
from medray.verbs import data, models, pipeline, prediction, serving, trials, tuning
from medray.verbs.options import (
    EXIT_DONE,
    EXIT_GATE,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_REJECTS,
    EXIT_USAGE,
)

# What a user may have mistyped: an argument, not an input among many.
_WRONG_ARGUMENT = frozenset({"model_missing", "model_hash_mismatch", "weights_refused"})

app = typer.Typer(
    name="medray",
    help="Piles of DICOM to trained, tuned, evaluated and served models, on Ray.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    data.index,
    data.convert,
    data.prepare,
    models.train,
    tuning.tune,
    models.evaluate,
    prediction.predict,
    serving.serve,
    serving.key,
    pipeline.run,
    models.info,
    data.phantom,
    trials.bench,
    trials.chaos,
):
    app.command()(verb)


def main() -> None:
    """Run the console script."""
    sys.exit(run(sys.argv[1:]))


def job_main(verb: str) -> None:
    """Run one verb as a Ray job: rejected inputs end it with 0 unless --strict-exit."""
    arguments = [item for item in sys.argv[1:] if item != "--strict-exit"]
    code = run([verb, *arguments])
    strict = len(arguments) != len(sys.argv) - 1
    sys.exit(EXIT_DONE if code == EXIT_REJECTS and not strict else code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are one line on stderr."""
    debug = "--debug" in arguments
    _keep_values_out_of_warnings(debug=debug)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = app(args=list(arguments) or ["--help"], prog_name="medray", standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # typer has caught the interruption and says nothing
            raise KeyboardInterrupt
    except TyperException as error:
        return _fail(EXIT_USAGE, f"{error.format_message()} (see medray --help)", debug=False)
    except (KeyboardInterrupt, typer.Abort, SystemExit):
        _say("interrupted; finished work is kept, run the same command to go on")
        return EXIT_INTERRUPTED
    except MedrayError as error:
        return _fail(_code_of(error), str(error), debug=debug)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        text = f"internal error: {type(error).__name__}; run again with --debug for the traceback"
        return _fail(EXIT_INTERNAL, text, debug=debug)
    return result if isinstance(result, int) else EXIT_DONE


def _code_of(error: MedrayError) -> int:
    """Return the exit code of an error with a meaning to the user."""
    if isinstance(error, GateError):
        return EXIT_GATE
    wrong = isinstance(error, DataError) and error.reason in _WRONG_ARGUMENT
    return EXIT_USAGE if wrong or isinstance(error, ConfigError) else EXIT_INTERNAL


def _fail(code: int, message: str, *, debug: bool) -> int:
    if debug:
        logging.getLogger(__name__).exception("traceback")
    _say(message)
    return code


def _say(message: str) -> None:
    sys.stderr.write(f"medray: {' '.join(message.split())}\n")


def _interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal API
    raise KeyboardInterrupt


def _keep_values_out_of_warnings(*, debug: bool) -> None:
    """Silence libraries whose warnings quote header values, names included."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if not debug:
        warnings.filterwarnings("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")


if __name__ == "__main__":
    main()
