# SPDX-License-Identifier: Apache-2.0
"""Layers, containers, losses and initialisation, with PyTorch's names."""

from paceline.nn import functional, init, utils
from paceline.nn.activations import (
    GELU,
    GLU,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    SwiGLU,
    Tanh,
)
from paceline.nn.containers import ModuleDict, ModuleList, ParameterList, Sequential
from paceline.nn.criteria import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    L1Loss,
    LinearCrossEntropyLoss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from paceline.nn.layers import (
    Dropout,
    Embedding,
    Flatten,
    Identity,
    LayerNorm,
    Linear,
    RMSNorm,
    RotaryEmbedding,
    Unflatten,
)
from paceline.nn.linear_loss import LinearCrossEntropyOptions
from paceline.nn.module import Module
from paceline.nn.parameter import Buffer, Parameter

__all__ = [
    "GELU",
    "GLU",
    "BCEWithLogitsLoss",
    "Buffer",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "Identity",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyOptions",
    "LogSoftmax",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ParameterList",
    "RMSNorm",
    "ReLU",
    "RotaryEmbedding",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "SwiGLU",
    "Tanh",
    "Unflatten",
    "functional",
    "init",
    "utils",
]
