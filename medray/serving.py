"""The service as a Serve config file names it: `import_path: medray.serving:build`."""

from collections.abc import Mapping
from typing import Any

from medray.engine.serve_options import application, described_models, options_of
from medray.tasks import get_recipe


def build(args: Mapping[str, Any]) -> Any:
    """Return the Serve application of a config file's `args`.

    Args:
        args: what `medray serve --write-config` wrote.

    Raises:
        ConfigError: an option that this version does not know, or that does not hold.
    """
    options = options_of(args)
    return application(described_models(options, get_recipe), options, get_recipe)
