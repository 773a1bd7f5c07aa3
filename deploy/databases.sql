-- Beside `mlflow`, which the image makes: who may do what in MLflow, and Prefect's own.
CREATE DATABASE mlflow_auth;
CREATE DATABASE prefect;
