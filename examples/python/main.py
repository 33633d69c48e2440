"""A FastAPI app that says who answers."""

import os
import platform
import socket

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
def index():
    return {
        "message": "Hello from Python",
        "python": platform.python_version(),
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
    }


@app.get("/add/{a}/{b}")
def add(a: int, b: int):
    return {"sum": a + b}
