"""ResNet50 as an ONNX graph, for runtimes other than PyTorch.

It is written layer by layer, since the network is known: PyTorch's exporter does not support
torchvision's int8 modules, and the graph includes the normalization
(docs/adr/0008-cpu-engines.md).

Input `images`: uint8 [N, height, width, 3], RGB. Outputs `embeddings`: float32 [N, 2048], and
`probabilities`: float32 [N, categories], which a network without a classification head has not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from resnet50_server.images.transform import Transform
from resnet50_server.variants.network import Network
from resnet50_server.variants.spec import Activation

# Opset 13 is the first with quantization along an axis; all current runtimes support 17.
_OPSET, _IR_VERSION = 17, 8

Value = TypeVar("Value")


def onnx_graph(network: Network, transform: Transform) -> onnx.ModelProto:
    """Return a network as a graph.

    Args:
        network: On the CPU, in float32 with its BatchNorms folded, or torchvision's int8 one.
        transform: The variant's.
    """
    graph = _Int8Graph(transform) if network.quantized else _FloatGraph(transform)
    return graph.write(network.model, network.activation)


@dataclass(frozen=True)
class _Quantized:
    """The name of a uint8 tensor with the values (value - zero_point) * scale."""

    name: str
    scale: float
    zero_point: int


class _Graph(ABC, Generic[Value]):
    """ResNet50's layers in order; subclasses write each layer in their arithmetic."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def write(self, model: Any, activation: Activation) -> onnx.ModelProto:
        """Return the graph of torchvision's ResNet50 `model`."""
        x = self._convolve(self._input(model), model.conv1, relu=True)
        x = self._pool(x)
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            for block in layer:
                y = self._convolve(x, block.conv1, relu=True)
                y = self._convolve(y, block.conv2, relu=True)
                y = self._convolve(y, block.conv3, relu=False)
                if block.downsample is not None:
                    x = self._convolve(x, _convolution(block.downsample), relu=False)
                x = self._join(y, x, block)
        pooled, outputs = self._average(x), [_output("embeddings", model.fc.in_features)]
        if model.fc.out_features:
            logits = self._classify(pooled, model.fc)
            if activation == "sigmoid":
                self._node("Sigmoid", logits, output="probabilities")
            else:
                self._node("Softmax", logits, output="probabilities", axis=1)
            outputs.insert(0, _output("probabilities", model.fc.out_features))
        size = self._transform.input_size
        graph = helper.make_graph(
            self._nodes,
            "resnet50",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *size, 3])],
            outputs,
            self._constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )

    @abstractmethod
    def _input(self, model: Any) -> Value: ...

    @abstractmethod
    def _convolve(self, x: Value, convolution: Any, relu: bool) -> Value: ...

    @abstractmethod
    def _pool(self, x: Value) -> Value: ...

    @abstractmethod
    def _join(self, y: Value, shortcut: Value, block: Any) -> Value: ...

    @abstractmethod
    def _average(self, x: Value) -> Value:
        """Write the tensor "embeddings"; return the input of the head."""

    @abstractmethod
    def _classify(self, x: Value, head: Any) -> str: ...

    def _normalized(self) -> str:
        """Write the step from `images` to the network's input, float32 [N, 3, height, width]."""
        scale, shift = (np.array(values, np.float32) for values in self._transform.affine())
        pixels = self._node("Cast", "images", to=TensorProto.FLOAT)
        pixels = self._node("Mul", pixels, self._constant(scale))
        pixels = self._node("Add", pixels, self._constant(shift))
        return self._node("Transpose", pixels, perm=[0, 3, 1, 2])

    def _node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, values: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name


class _FloatGraph(_Graph[str]):
    def _input(self, model: Any) -> str:
        return self._normalized()

    def _convolve(self, x: str, convolution: nn.Conv2d, relu: bool) -> str:
        assert convolution.bias is not None  # the BatchNorm's, folded
        weight = self._constant(convolution.weight.detach().numpy())
        bias = self._constant(convolution.bias.detach().numpy())
        x = self._node("Conv", x, weight, bias, **_geometry(convolution))
        return self._node("Relu", x) if relu else x

    def _pool(self, x: str) -> str:
        return self._node("MaxPool", x, **_POOLING)

    def _join(self, y: str, shortcut: str, block: Any) -> str:
        return self._node("Relu", self._node("Add", y, shortcut))

    def _average(self, x: str) -> str:
        return self._node("Flatten", self._node("GlobalAveragePool", x), output="embeddings")

    def _classify(self, x: str, head: nn.Linear) -> str:
        weight = self._constant(head.weight.detach().numpy())
        return self._node("Gemm", x, weight, self._constant(head.bias.detach().numpy()), transB=1)


class _Int8Graph(_Graph[_Quantized]):
    """torchvision's int8 modules, their very weights, scales and zero points.

    Between each pair of QuantizeLinear and DequantizeLinear a runtime sees one int8 layer.
    """

    def _input(self, model: Any) -> _Quantized:
        return self._quantize(self._normalized(), model.quant)

    def _convolve(self, x: _Quantized, convolution: Any, relu: bool) -> _Quantized:
        weight, bias = self._parameters(convolution, x.scale)
        y = self._node("Conv", self._dequantize(x), weight, bias, **_geometry(convolution))
        return self._quantize(self._node("Relu", y) if relu else y, convolution)

    def _pool(self, x: _Quantized) -> _Quantized:
        return _Quantized(self._node("MaxPool", x.name, **_POOLING), x.scale, x.zero_point)

    def _join(self, y: _Quantized, shortcut: _Quantized, block: Any) -> _Quantized:
        total = self._node("Add", self._dequantize(y), self._dequantize(shortcut))
        return self._quantize(self._node("Relu", total), block.skip_add_relu)

    def _average(self, x: _Quantized) -> _Quantized:
        # PyTorch's average of int8 is int8 again, on the same scale.
        average = self._requantize(self._node("GlobalAveragePool", self._dequantize(x)), x)
        pooled = _Quantized(self._node("Flatten", average), x.scale, x.zero_point)
        self._dequantize(pooled, output="embeddings")
        return pooled

    def _classify(self, x: _Quantized, head: Any) -> str:
        weight, bias = self._parameters(head, x.scale)
        logits = self._node("Gemm", self._dequantize(x), weight, bias, transB=1)
        return self._dequantize(self._quantize(logits, head))

    def _quantize(self, x: str, module: Any) -> _Quantized:
        """Write a float tensor as uint8, on the scale that `module` gives its output."""
        value = _Quantized("", float(module.scale), int(module.zero_point))
        return _Quantized(self._requantize(x, value), value.scale, value.zero_point)

    def _requantize(self, x: str, like: _Quantized) -> str:
        return self._node("QuantizeLinear", x, *self._scale(like))

    def _dequantize(self, x: _Quantized, output: str = "") -> str:
        return self._node("DequantizeLinear", x.name, *self._scale(x), output=output)

    def _scale(self, x: _Quantized) -> tuple[str, str]:
        scale = self._constant(np.array(x.scale, dtype=np.float32))
        return scale, self._constant(np.array(x.zero_point, dtype=np.uint8))

    def _parameters(self, module: Any, input_scale: float) -> tuple[str, str]:
        """Write a module's weight, int8 with a scale for each output channel, and its bias."""
        weight = module.weight()
        scales = weight.q_per_channel_scales().numpy().astype(np.float32)
        zeros = weight.q_per_channel_zero_points().numpy()
        if zeros.any():
            raise ValueError("int8 weights with zero points other than 0 are not known here")
        # A product of an input and a weight counts in units of both scales; so does the bias.
        bias_scales = scales * np.float32(input_scale)
        bias = np.round(module.bias().detach().numpy() / bias_scales).astype(np.int32)
        return (
            self._stored(weight.int_repr().numpy(), scales),
            self._stored(bias, bias_scales),
        )

    def _stored(self, values: NDArray[Any], scales: NDArray[np.float32]) -> str:
        zeros = np.zeros(len(scales), dtype=values.dtype)
        inputs = [self._constant(array) for array in (values, scales, zeros)]
        return self._node("DequantizeLinear", *inputs, axis=0)


_POOLING: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def _output(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])


def _convolution(downsample: Any) -> Any:
    """Return the convolution of a shortcut; in the int8 network what was fused into it follows."""
    return downsample[0] if isinstance(downsample, nn.Sequential) else downsample


def _geometry(convolution: Any) -> dict[str, Any]:
    return {
        "kernel_shape": list(convolution.kernel_size),
        "strides": list(convolution.stride),
        "pads": [*convolution.padding, *convolution.padding],
    }
