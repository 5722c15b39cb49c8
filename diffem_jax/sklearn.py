"""Missing values of a table filled by draws of p(x | y): an imputer for scikit-learn's pipelines.

imputer = DiffEMImputer().fit(X)          # X [N, D] or a data frame, NaN or None where missing
imputer.transform(X)                      # E[x | y], the likeliest categories
imputer.sample(X, num_samples=8)          # several imputations: their spread is the uncertainty
"""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from diffem_jax.data.tables import Table, encode_like, encode_table, is_missing
from diffem_jax.errors import UserError
from diffem_jax.pretrained import Pretrained, load
from diffem_jax.run.train import run_em
from diffem_jax.types import Observation
from diffem_jax.usage import load_config

MEANS = 4  # evaluations of the network that ``transform`` averages per row


class DiffEMImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Learns the joint distribution of a table's columns from its incomplete rows, and draws what is missing.

    A column of texts holds categories, one of numbers does not unless ``categories`` names it. What is there is returned as it is.

    Args:
        categories: columns of numbers that are categories, by position.
        fields: fields of the configuration ``own_data:table``, such as {"rounds": 3, "m_step.steps": 1000}.
        random_state: seed of the training and of the draws; None for another one each time.
        verbose: whether lines of the training are printed.

    Attributes:
        model_: the trained model, None where no column has two different values.
        varying_: positions of the columns that it was trained on; the others are constant.
    """

    def __init__(
        self,
        categories: Sequence[int] = (),
        fields: Mapping[str, Any] | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ):
        self.categories, self.fields = categories, fields
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains on the rows of a table X [N, D]: NaN, None, pandas' NA and texts such as "" and "?" where missing; y is not used.

        ValueError for a column without any entry, infinite numbers, a table that cannot be read, or a wrong field.
        """
        columns = self._columns(X, reset=True)
        self._constants = [_constant(i, column) for i, column in enumerate(columns)]
        self.varying_ = [i for i, constant in enumerate(self._constants) if constant is None]
        self.model_: Pretrained | None = None
        if not self.varying_:
            return self
        with tempfile.TemporaryDirectory(prefix="diffem_") as folder:
            try:
                chosen = [str(i) for i in self.categories if i in self.varying_]
                table = encode_table({str(i): columns[i] for i in self.varying_}, chosen)
                np.savez(Path(folder, "table.npz"), y=table.y, mask=table.mask)
                self._encoding = table.columns
                own = {"data.path": Path(folder, "table.npz"), "corruption.groups": table.groups, "seed": self._seed()}
                fields = own | dict(self.fields or {})
                config = load_config("own_data:table", [(name, str(value)) for name, value in fields.items()])
                with contextlib.nullcontext() if self.verbose else contextlib.redirect_stdout(io.StringIO()):
                    run_em(config, Path(folder, "run"))
                self.model_ = load(Path(folder, "run"))
            except UserError as error:
                raise ValueError(str(error)) from error
        return self

    def transform(self, X: Any) -> np.ndarray:
        """A table [N, D] with what is missing filled by its posterior mean, E[x | y], categories by the likeliest."""
        columns, observed = self._observed(X)
        model: Any = self.model_
        return self._filled(columns, None if observed is None else model.posterior_means(observed, MEANS, self._seed()))

    def sample(self, X: Any, num_samples: int = 1) -> np.ndarray:
        """Tables [num_samples, N, D], each with what is missing filled by one draw of p(x | y)."""
        columns, observed = self._observed(X)
        model: Any = self.model_
        draws = [None] * num_samples if observed is None else model.posterior_draws(observed, num_samples, self._seed())
        return np.stack([self._filled(columns, draw) for draw in draws])

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _observed(self, X: Any) -> tuple[list[np.ndarray], Observation | None]:
        """The columns of a table, and what the model sees of them."""
        check_is_fitted(self)
        columns = self._columns(X, reset=False)
        if self.model_ is None:
            return columns, None
        try:
            table = encode_like({str(i): columns[i] for i in self.varying_}, self._encoding)
        except UserError as error:
            raise ValueError(str(error)) from error
        return columns, Observation(table.y, table.mask)  # type: ignore[arg-type]

    def _filled(self, columns: list[np.ndarray], x: np.ndarray | None) -> np.ndarray:
        """The columns [N, D] with what x [N, width] stands for where an entry is missing."""
        new = {} if x is None else Table(x, x, self._encoding).decode(x)
        kind = float if self._numeric else object
        missing = [[is_missing(value) for value in column] for column in columns]
        fillings = [new.get(str(i), constant) for i, constant in enumerate(self._constants)]
        filled = map(np.where, missing, fillings, columns)
        return np.stack([column.astype(kind) for column in filled], axis=1)

    def _columns(self, X: Any, reset: bool) -> list[np.ndarray]:
        """The columns of a table, checked as scikit-learn does."""
        X = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan", ensure_min_features=1)
        numeric = X.dtype.kind in "biuf"
        if reset:
            self._numeric = numeric
        return [X[:, i].astype(float if numeric else object) for i in range(X.shape[1])]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _constant(position: int, column: np.ndarray) -> Any:
    """The only value of a column, None where there are several; ValueError where nothing is there."""
    values = {value for value in column if not is_missing(value)}
    if not values:
        raise ValueError(f"column {position}: no entry is there; expected at least one; leave the column out")
    return values.pop() if len(values) == 1 else None
