"""A small shop whose packages are large: what the benchmark packs and starts."""

import sys
import time

import lxml.etree
import numpy
import psycopg
from cryptography.fernet import Fernet
from flask import Flask, render_template

app = Flask(__name__)


@app.get("/")
def index():
    prices = numpy.linspace(1, 9, 5)
    receipt = lxml.etree.tostring(lxml.etree.XML("<receipt><total/></receipt>")).decode()
    secret = Fernet(Fernet.generate_key()).encrypt(receipt.encode())
    return render_template(
        "index.html",
        prices=prices,
        total=prices.sum(),
        receipt=receipt,
        secret=secret.decode(),
        database=psycopg.pq.__impl__,
        libpq=psycopg.pq.version(),
    )


def page():
    """Renders one page, and prints when that was done and where the interpreter is."""
    answer = app.test_client().get("/")
    assert answer.status_code == 200 and b"<li>9.0</li>" in answer.data, answer.data
    print(f"HELLO 1 {time.monotonic_ns()} {sys.executable}", flush=True)


if __name__ == "__main__":
    page()
