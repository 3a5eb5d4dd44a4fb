"""How much each path of a tied table says: norms, cosine and shares of gradients and of Adam updates."""

import torch
from torch import Tensor


def output_share(input_norm: Tensor, output_norm: Tensor) -> Tensor:
    """Return ||output|| / (||input|| + ||output||), in [0, 1]; NaN where both are 0.

    Figure 4 of arXiv 2603.26663 draws this share. There the input norm is of the activation gradient of one micro-batch and
    the output norm of a weight gradient; on the weight gradients of both paths it compares like with like.
    """
    return output_norm / (input_norm + output_norm)


def path_statistics(input_gradient: Tensor, output_gradient: Tensor) -> dict[str, Tensor]:
    """Return the Frobenius norms of both path gradients (V, d), their cosine in [-1, 1], and the output share in [0, 1].

    Each is a 0-dimensional tensor on the gradients' device: nothing waits for the device. Raises ValueError if the shapes
    differ.
    """
    if input_gradient.shape != output_gradient.shape:
        raise ValueError(
            f"input_gradient and output_gradient: equal shapes are needed, got {tuple(input_gradient.shape)} and "
            f"{tuple(output_gradient.shape)}"
        )
    source, target = torch.linalg.vector_norm(input_gradient), torch.linalg.vector_norm(output_gradient)
    dot = torch.dot(input_gradient.flatten(), output_gradient.flatten())
    return {
        "input_norm": source,
        "output_norm": target,
        "cosine": dot / (source * target),
        "output_share": output_share(source, target),
    }


def inverse_scale(second_moment: Tensor, step: int, beta2: float, eps: float, *, out: Tensor | None = None) -> Tensor:
    """Return what Adam multiplies its first moment by (up to the learning rate and the first moment's own bias correction).

    1 / (sqrt(v / (1 - beta2^step)) + eps), elementwise (V, d); arXiv 1412.6980, algorithm 1. It is shared by the two paths
    of a tied table, while the first moment is linear in the gradient and splits exactly. `out` (V, d) spares an allocation.
    """
    return torch.div(second_moment, 1 - beta2**step, out=out).sqrt_().add_(eps).reciprocal_()
