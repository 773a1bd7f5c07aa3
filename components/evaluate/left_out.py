"""How a candidate answers about collections that it never saw, and the decision that is fitted on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components import metrics as figures
from components.evaluate.decision import Decision, Scored
from components.params import Evaluate

FILE = "left_out.parquet"


@dataclass(frozen=True)
class LeftOut:
    """Images that were left out of training with all of their collection.

    Attributes:
        images: `sha256`, `label` and `collection` of each.
        logits: float32, shape (members, n): what each member says that was fitted without them.
    """

    images: pd.DataFrame
    logits: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """bool, shape (n,): true for `ai`."""
        return (self.images["label"] == "ai").to_numpy()

    @property
    def members(self) -> list[Scored]:
        """What each member says."""
        return [Scored(z, self.labels) for z in self.logits]

    def joined(self, temperatures: Sequence[float]) -> Scored:
        """The mean of what the members say, each by its temperature."""
        return Scored((self.logits / np.array(temperatures, np.float32)[:, None]).mean(axis=0), self.labels)

    def scores(self, decision: Decision, temperatures: Sequence[float], settings: Evaluate) -> dict[str, Any]:
        """Scores as of the test images, the shares of verdicts by label, and the same by collection."""
        labels, p = self.labels, decision.probabilities(self.joined(temperatures).logits)
        verdicts = {"ai": p >= decision.high, "real": p < decision.low}
        verdicts["uncertain"] = ~(verdicts["ai"] | verdicts["real"])
        certain = ~verdicts["uncertain"]
        right = (p >= decision.threshold) == labels

        def shares(which: np.ndarray) -> dict[str, float]:
            return {verdict: float(said[which].mean()) for verdict, said in verdicts.items()}

        collections = self.images["collection"]
        return {
            **figures.summarise(labels, p, decision.threshold, settings.bootstrap, settings.seed),
            "certain_accuracy": float(right[certain].mean()) if certain.any() else None,
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
    images = tables[0].loc[common, ["label", "collection"]].reset_index()
    return LeftOut(images, np.stack([table.loc[common, "logit"].to_numpy(np.float32) for table in tables]))
