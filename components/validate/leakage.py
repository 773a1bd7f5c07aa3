"""Can the label be told from what is not the picture?"""

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

_MOST = 20_000  # rows; more change the third digit only


def audit(rows: pd.DataFrame, seed: int = 0) -> dict[str, object]:
    """How well the metadata alone gives the label away.

    Args:
        rows: the manifest.
        seed: of the folds.

    Returns:
        `metadata_auc` (cross-validated area under the ROC curve of a gradient-boosted classifier on all columns,
        0.5 where nothing leaks) and `by_column`, the same for each column alone. Both are null where a class has
        fewer than ten images.
    """
    if rows["label"].value_counts().reindex(["ai", "real"], fill_value=0).min() < 10:
        return {"metadata_auc": None, "by_column": {}}
    if len(rows) > _MOST:
        rows = rows.sample(_MOST, random_state=seed)
    features = pd.DataFrame(
        {
            "format": rows["format"].astype("category").cat.codes,
            "mode": rows["mode"].astype("category").cat.codes,
            "width": rows["width"],
            "height": rows["height"],
            "aspect": rows["width"] / rows["height"],
            "bytes_per_pixel": rows["n_bytes"] / (rows["width"] * rows["height"]),
        }
    )
    label = (rows["label"] == "ai").to_numpy()
    by_column = {name: _auc(features[[name]], label, seed) for name in features}
    return {"metadata_auc": _auc(features, label, seed), "by_column": by_column}


def _auc(features: pd.DataFrame, label: np.ndarray, seed: int) -> float:
    if (features.nunique() == 1).all():
        return 0.5
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    model = HistGradientBoostingClassifier(max_iter=50, random_state=seed)
    # So little work is done sooner by one thread, above all where others have the cores.
    with threadpool_limits(1):
        scores = cross_val_predict(model, features, label, cv=folds, method="predict_proba")[:, 1]
    return round(float(roc_auc_score(label, scores)), 4)
