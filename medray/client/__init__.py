"""A small client of a medray server: upload, wait, save, with retries that repeat no work.

with Client("https://host:8000", key) as client:
    answer = client.predict("series/", "pancreas")
    print(answer.results[0]["volume_ml"])
    client.save(answer, "out/")

It needs nothing beyond the standard library, so it also works where no Ray and no torch runs.
"""

from medray.client.session import Answer, Client, Job, Retries
from medray.client.wire import ClientError

__all__ = ["Answer", "Client", "ClientError", "Job", "Retries"]
