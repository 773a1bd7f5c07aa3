"""The whole loop with the real tools: Prefect server, DVC, MLflow's registry and its scoring server.

The tests of this module tell one story and run in order: each takes the project on where the last one left it.
"""

import asyncio
import base64
import csv
import io
import json
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest_live import Project, free_port, stop, wait_for
from PIL import Image

from components.serve.detector import FIELDS
from components.shards import paths
from components.shards import files as shard_files
