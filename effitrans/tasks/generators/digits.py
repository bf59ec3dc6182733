"""Handwritten digits: the 1,797 real 8x8 grey images that come with scikit-learn (UCI, Alpaydin and Kaynak 1998)."""

from typing import Any, Literal

from pydantic import Field

from effitrans.config import Config, Seed


class Digits(Config):
    """Columns `image` (8 rows of 8 floats, 0 to 1) and `label` (0 to 9), split with equal shares of each digit."""

    generator: Literal["digits"] = "digits"
    """Names this generator."""
    seed: Seed = 0
    """Seed of the split."""
    validation_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Share of the images in `validation`."""
    test_fraction: float = Field(0.2, gt=0, lt=0.5)
    """Share of the images in `test`; the rest is `train`."""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def columns(self, split: str) -> dict[str, list[Any]]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        data: Any = load_digits()
        images, labels = data.images / 16.0, data.target
        indices: dict[str, Any] = {"train": list(range(len(labels)))}
        for name, fraction in (("test", self.test_fraction), ("validation", self.validation_fraction)):
            indices["train"], indices[name] = train_test_split(
                indices["train"],
                test_size=round(fraction * len(labels)),
                random_state=self.seed,
                stratify=labels[indices["train"]],
            )
        chosen = indices[split]
        return {"image": images[chosen].tolist(), "label": labels[chosen].tolist()}
