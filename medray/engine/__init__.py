"""The stages on Ray; the only package that imports it."""

import os

# Ray reads this as it is imported. A training starts more processes than a small machine has cores,
# which wait for one another by design; Ray would warn of each of them on the user's screen.
# And Serve ends by a call that its own end breaks off.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    "worker processes have been started on node|ServeController.graceful_shutdown failed",
)
