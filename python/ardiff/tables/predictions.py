"""What a model returns, and how to read the data or the score from it, on any Gaussian path."""

from __future__ import annotations

PREDICTIONS = ("score", "epsilon", "sample", "v_prediction", "flow")


def check_prediction(prediction: str) -> str:
    """`prediction` itself, or ValueError listing the known types."""
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"unknown prediction {prediction!r}; known predictions: {', '.join(PREDICTIONS)}"
        )
    return prediction


def data_coefficients(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(p_x, p_o) such that the data prediction is x0 = p_x x + p_o out.

    `v_prediction` is alpha eps - sigma x0 and `flow` is eps - x0, both on any path.

    Raises:
        ValueError: for `epsilon` or `score` at alpha = 0, where the output does not determine x0.
    """
    check_prediction(prediction)
    if prediction == "sample":
        return 0.0, 1.0
    if prediction == "v_prediction":
        return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)
    if prediction == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    if alpha == 0:
        raise ValueError(
            f"{prediction} prediction says nothing about the data at alpha = 0; start below that "
            "level or use a sample, v_prediction or flow model"
        )
    return 1 / alpha, (-sigma if prediction == "epsilon" else sigma**2) / alpha


def score_coefficients(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(s_z, s_o) such that the score at z is s_z z + s_o out.

    Raises:
        ValueError: at sigma = 0, where the score of noised data is not defined.
    """
    check_prediction(prediction)
    if prediction == "score":
        return 0.0, 1.0
    if sigma == 0:
        raise ValueError(f"the score of a {prediction} model is not defined at sigma = 0")
    if prediction == "epsilon":
        return 0.0, -1 / sigma
    if prediction == "sample":
        return -1 / sigma**2, alpha / sigma**2
    if prediction == "v_prediction":
        norm = alpha**2 + sigma**2
        return -1 / norm, -alpha / (sigma * norm)
    return -1 / (sigma * (alpha + sigma)), -alpha / (sigma * (alpha + sigma))


def output_from_data(prediction: str, alpha, sigma, x, x0):
    """What a model of this prediction type returns at x if it believes the data to be x0.

    The inverse of :func:`data_coefficients`, for oracles and training targets; arrays or tensors
    (alpha and sigma broadcast against x), sigma > 0 but for `sample`.
    """
    check_prediction(prediction)
    if prediction == "sample":
        return x0
    if prediction == "v_prediction":
        return (alpha * x - (alpha * alpha + sigma * sigma) * x0) / sigma
    if prediction == "flow":
        return (x - (alpha + sigma) * x0) / sigma
    epsilon = (x - alpha * x0) / sigma
    return epsilon if prediction == "epsilon" else -epsilon / sigma
