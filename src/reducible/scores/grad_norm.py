"""Gradient norms that need no backward pass."""

import torch
from torch import Tensor


def residual(*, logits: Tensor, targets: Tensor) -> Tensor:
    """h_i = softmax(z_i) − onehot(y_i), the gradient of the loss with respect to the logits.

    Args:
        logits: [B, C].
        targets: [B] int64.

    Returns:
        [B, C], of the logits' dtype.

    >>> import torch
    >>> logits, targets = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    >>> residual(logits=logits, targets=targets)[0]
    tensor([ 0.5000, -0.5000])
    """
    h = logits.softmax(dim=1)  # [B, C]
    # 1 − p_y is summed from the other classes: near p_y = 1 the difference would lose all digits.
    at_label = targets.unsqueeze(1)
    others = h.scatter(1, at_label, 0.0).sum(dim=1, keepdim=True)  # [B, 1]
    return h.scatter(1, at_label, -others)


def grad_norm(*, logits: Tensor, targets: Tensor) -> Tensor:
    """‖h_i‖₂: the bound on the gradient norm used by RHO-LOSS (Katharopoulos & Fleuret 2018).

    Args:
        logits: [B, C].
        targets: [B] int64.

    Returns:
        [B], of the logits' dtype.

    >>> import torch
    >>> logits, targets = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    >>> grad_norm(logits=logits, targets=targets)
    tensor([0.7071, 0.1686])
    """
    return torch.linalg.vector_norm(residual(logits=logits, targets=targets), dim=1)


def grad_norm_last_layer(*, logits: Tensor, targets: Tensor, features: Tensor) -> Tensor:
    """‖h_i‖₂·√(‖f_i‖₂² + 1): the exact gradient norm of the last linear layer, bias included.

    The gradient of the weights is h_i ⊗ f_i, that of the bias h_i (Katharopoulos & Fleuret 2018).

    Args:
        logits: [B, C].
        targets: [B] int64.
        features: [B, D] input of the last linear layer.

    Returns:
        [B], of the logits' dtype.

    >>> import torch
    >>> logits, targets = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    >>> grad_norm_last_layer(logits=logits, targets=targets, features=torch.zeros(2, 3))
    tensor([0.7071, 0.1686])
    """
    f_norm = torch.linalg.vector_norm(features.to(logits.dtype), dim=1)  # [B]
    return grad_norm(logits=logits, targets=targets) * torch.hypot(f_norm, torch.ones_like(f_norm))
