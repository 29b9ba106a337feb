"""`ray job submit -- python jobs/serve.py ...`: the arguments of `medray serve`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("serve")
