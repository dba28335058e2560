"""Users for locust (https://docs.locust.io): each sends a picture, waits for the answer, and sends the next.

make serve              in one terminal
make load-web           in another; then open http://127.0.0.1:8089 and choose how many users
"""

import json
import os
import random

import load
from locust import FastHttpUser, events, task

bodies: list[bytes] = []


@events.test_start.add_listener
def prepare(environment, **_):
    """Write the requests once, before the first user starts."""
    bodies[:] = [json.dumps({"image": one}).encode() for one in load.example_pictures(environment.host)]


class Caller(FastHttpUser):
    """Asks without a pause."""

    headers = {"Content-Type": "application/json"} | (
        {"X-API-Key": os.environ["API_KEY"]} if os.environ.get("API_KEY") else {}
    )

    @task
    def predict(self):
        """Send one picture; a refusal counts as a failure of its own name."""
        with self.client.post(
            "/predict", data=random.choice(bodies), headers=self.headers, catch_response=True
        ) as answer:
            if answer.status_code == 503:
                answer.failure("refused: 503")
