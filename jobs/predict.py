"""`ray job submit -- python jobs/predict.py ...`: the arguments of `medray predict`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("predict")
