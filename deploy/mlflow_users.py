"""Make the accounts of a shared MLflow server, or give them the passwords that the environment names now.

`trainer` owns the experiment and the registered model. `reader` looks: at the runs, and for the champion. Both are made
before anybody else can make that experiment or model, as MLflow gives what is made to whoever comes first.
"""

import os

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

from components import params, tracking


def main() -> None:
    """Make what isn't there yet."""
    trainer = {name: os.environ[name] for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")}
    users = {"reader": os.environ["MLFLOW_READER_PASSWORD"], trainer["MLFLOW_TRACKING_USERNAME"]: None}
    users[trainer["MLFLOW_TRACKING_USERNAME"]] = trainer["MLFLOW_TRACKING_PASSWORD"]
    os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
    os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    client = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    for name, password in users.items():
        if _is_new(client.create_user, name, password):
            print(f"made the account {name}")
        else:
            client.update_user_password(name, password)
    os.environ.update(trainer)
    tracking.connect()
    _is_new(MlflowClient().create_registered_model, params.load().register_.model)


def _is_new(make, *values: str) -> bool:
    try:
        make(*values)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


if __name__ == "__main__":
    main()
