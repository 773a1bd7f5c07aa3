"""How a candidate answers about collections that it never saw, and the decision that is fitted on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components import metrics as figures
from components.evaluate import decision as decisions
from components.evaluate.decision import Decision, Scored
from components.params import Evaluate

FILE = "left_out.parquet"
_DRAWN = 20_000


@dataclass(frozen=True)
class LeftOut:
    """Images that were left out of training with all of their collection.

    Attributes:
        images: `sha256`, `label`, `collection` and `weight` of each.
        logits: float32, shape (members, n): what each member says that was fitted without them.

    A large collection says little more of the world than a small one does. So all figures, and the decision, count
    each image by its weight: both labels alike, and within one the collections by the root of their sizes.
    """

    images: pd.DataFrame
    logits: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """bool, shape (n,): true for `ai`."""
        return (self.images["label"] == "ai").to_numpy()

    @property
    def members(self) -> list[Scored]:
        """What each member says of images that are drawn by their weights."""
        return [Scored(z[self._drawn], self.labels[self._drawn]) for z in self.logits]

    def fitted(self, temperatures: Sequence[float], settings: Evaluate) -> Decision:
        """The decision of all members together, on images that are drawn by their weights."""
        scored = Scored(self.joined(temperatures)[self._drawn], self.labels[self._drawn])
        return decisions.fit(scored, scored, Scored(np.empty(0), np.empty(0, bool)), settings)

    def joined(self, temperatures: Sequence[float]) -> np.ndarray:
        """The mean of what the members say of each image, each by its temperature."""
        return np.asarray((self.logits / np.array(temperatures, np.float32)[:, None]).mean(axis=0))

    @property
    def _drawn(self) -> np.ndarray:
        """Places of some ten thousand images: each as often as its weight says, evenly spaced and without chance."""
        ends = np.cumsum(self.images["weight"].to_numpy(np.float64))
        n = max(_DRAWN, 2 * len(ends))
        return np.minimum(np.searchsorted(ends / ends[-1], (np.arange(n) + 0.5) / n), len(ends) - 1)

    def scores(self, decision: Decision, temperatures: Sequence[float], settings: Evaluate) -> dict[str, Any]:
        """Scores as of the test images, the shares of verdicts by label, and the same by collection."""
        labels, p = self.labels, decision.probabilities(self.joined(temperatures))
        weights = self.images["weight"].to_numpy(np.float64)
        weights = weights * (len(labels) / weights.sum())
        verdicts = {"ai": p >= decision.high, "real": p < decision.low}
        verdicts["uncertain"] = ~(verdicts["ai"] | verdicts["real"])
        certain = ~verdicts["uncertain"]
        right = (p >= decision.threshold) == labels

        def shares(which: np.ndarray) -> dict[str, float]:
            return {verdict: _mean(said[which], weights[which]) for verdict, said in verdicts.items()}

        collections = self.images["collection"]
        return {
            **figures.summarise(labels, p, decision.threshold, settings.bootstrap, settings.seed, weights),
            "certain_accuracy": _mean(right[certain], weights[certain]) if certain.any() else None,
            "certain_by_label": {
                label: _mean(right[which], weights[which]) if (which := certain & of_label).any() else None
                for label, of_label in (("ai", labels), ("real", ~labels))
            },
            "verdicts": {"ai": shares(labels), "real": shares(~labels)},
            "by_collection": [
                {
                    "collection": str(name),
                    "label": label,
                    "n": int(which.sum()),
                    "right": float(right[which].mean()),
                    **{f"called_{verdict}": share for verdict, share in shares(which).items()},
                }
                for name in sorted(collections.unique())
                for label, of_label in (("ai", labels), ("real", ~labels))
                if (which := (collections == name).to_numpy() & of_label).any()
            ],
        }


def read(folders: Sequence[Path]) -> LeftOut | None:
    """What training wrote of all members; null where one of them wrote none, or no image was left out of all."""
    files = [folder / FILE for folder in folders]
    if not all(file.exists() for file in files):
        return None
    tables = [pd.read_parquet(file).drop_duplicates("sha256").set_index("sha256") for file in files]
    common = tables[0].index
    for table in tables[1:]:
        common = common.intersection(table.index)
    if common.empty or tables[0].loc[common, "label"].nunique() < 2:
        return None
    images = tables[0].loc[common, ["label", "collection", "weight"]].reset_index()
    return LeftOut(images, np.stack([table.loc[common, "logit"].to_numpy(np.float32) for table in tables]))


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average(values, weights=weights))
