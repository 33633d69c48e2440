"""A FastAPI app that calculates with NumPy."""

import os

import numpy
import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def index():
    return {"sum": float(numpy.arange(10).sum())}


uvicorn.run(app, host="0.0.0.0", port=int(os.environ["PORT"]), log_level="warning")
