"""Operators that work element by element, with what was broadcast summed on the way back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.gradients.rules.registry import NoGradientError, rule
from onnxcompress.gradients.tape import Gradients, Tape

Slope = Callable[[Tape, ir.Node, ir.Value, ir.Value, ir.Value], ir.Value]
"""From the tape, the node, x, y and the gradient at y to the gradient at x."""


def function_of_one(*operators: str) -> Callable[[Slope], Slope]:
    """Register the gradient of y = f(x)."""

    def register(slope: Slope) -> Slope:
        @rule(*operators)
        def both(tape: Tape, node: ir.Node, inputs: Any) -> Any:
            y = tape.repeat(node, inputs)
            x, *others = inputs
            return y, lambda g: [slope(tape, node, x, y, g), *(None for _ in others)]

        both.__doc__ = slope.__doc__
        return slope

    return register


# --- two operands ----------------------------------------------------------------------------------


@rule("Add", "Sum")
def add(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Each operand has the gradient of the sum."""
    y = tape.repeat(node, inputs)
    return y, lambda g: [
        tape.sum_to(g, tape.shape(y), tape.shape(each)) if tape.wants(each) else None for each in inputs
    ]


@rule("Sub")
def sub(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """(g, −g)."""
    y = tape.repeat(node, inputs)
    a, b = inputs
    return y, lambda g: [
        tape.sum_to(g, tape.shape(y), tape.shape(a)) if tape.wants(a) else None,
        tape.emit("Neg", tape.sum_to(g, tape.shape(y), tape.shape(b))) if tape.wants(b) else None,
    ]


@rule("Mul")
def mul(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """(g b, g a)."""
    y = tape.repeat(node, inputs)
    a, b = inputs
    return y, lambda g: [
        tape.sum_to(tape.mul(g, other), tape.shape(y), tape.shape(one)) if tape.wants(one) else None
        for one, other in ((a, b), (b, a))
    ]


@rule("Div")
def div(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """(g / b, −g y / b)."""
    y = tape.repeat(node, inputs)
    a, b = inputs

    def pullback(g: ir.Value) -> Gradients:
        ga = tape.div(g, b)
        gb = tape.emit("Neg", tape.mul(ga, y)) if tape.wants(b) else None
        return [
            tape.sum_to(each, tape.shape(y), tape.shape(operand)) if each is not None else None
            for each, operand in ((ga if tape.wants(a) else None, a), (gb, b))
        ]

    return y, pullback


@rule("Pow")
def power(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """a ** b for a constant b: g b a ** (b − 1)."""
    y = tape.repeat(node, inputs)
    a, b = inputs
    if tape.wants(b) or b.const_value is None:
        raise NoGradientError("an exponent that is computed or trained")
    exponent = b.const_value.numpy()

    def pullback(g: ir.Value) -> Gradients:
        slope = tape.mul(tape.emit("Pow", a, tape.constant(exponent - 1)), tape.constant(exponent))
        return [tape.sum_to(tape.mul(g, slope), tape.shape(y), tape.shape(a)), None]

    return y, pullback


@rule("Max", "Min")
def extreme(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """To the operand that is the largest (the smallest); of equal ones to the first."""
    if len(inputs) != 2:
        raise NoGradientError(f"{len(inputs)} operands")
    y = tape.repeat(node, inputs)
    a, b = inputs

    def pullback(g: ir.Value) -> Gradients:
        to_b = tape.where(tape.emit("Less" if node.op_type == "Max" else "Greater", a, b), g)
        return [
            tape.sum_to(tape.sub(g, to_b), tape.shape(y), tape.shape(a)) if tape.wants(a) else None,
            tape.sum_to(to_b, tape.shape(y), tape.shape(b)) if tape.wants(b) else None,
        ]

    return y, pullback


@rule("Where")
def where(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """To the operand that was taken."""
    y = tape.repeat(node, inputs)
    condition, a, b = inputs

    def pullback(g: ir.Value) -> Gradients:
        to_a = tape.where(condition, g)
        return [
            None,
            tape.sum_to(to_a, tape.shape(y), tape.shape(a)) if tape.wants(a) else None,
            tape.sum_to(tape.sub(g, to_a), tape.shape(y), tape.shape(b)) if tape.wants(b) else None,
        ]

    return y, pullback


# --- one operand -----------------------------------------------------------------------------------


@rule("Identity", "Dropout")
def identity(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Passes through; Dropout does nothing at inference, nor here."""
    (x, *others) = inputs
    y = tape.know(tape.emit("Identity", x), tape.shape(x))
    outputs = (y, *(tape.emit("Identity", x) for _ in node.outputs[1:]))
    return outputs, lambda g, *_: [g, *(None for _ in others)]


@rule("Cast")
def cast(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Between real types, which are all the same here; integers have no gradient."""
    y = tape.repeat(node, inputs)
    if not ir.DataType(node.attributes["to"].as_int()).is_floating_point():
        return y, None
    return y, lambda g: [g]


@rule("Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "ArgMin")
@rule("Not", "And", "Or", "Sign", "Floor", "Ceil", "Round", "ConstantOfShape", "NonZero", "IsNaN")
def flat(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """What does not change with small changes of the input."""
    return tape.repeat(node, inputs), None


@function_of_one("Relu")
def relu(tape: Tape, _: ir.Node, __: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """By y, so that ONNX Runtime can fuse the forward with the layer before it."""
    return tape.where(tape.emit("Greater", y, tape.constant(0)), g)


@function_of_one("LeakyRelu")
def leaky_relu(tape: Tape, node: ir.Node, x: ir.Value, _: ir.Value, g: ir.Value) -> ir.Value:
    """1 or α."""
    alpha = node.attributes.get_float("alpha", 0.01)
    above = tape.where(tape.emit("Greater", x, tape.constant(0)), tape.mul(g, 1 - alpha))
    return tape.add(above, tape.mul(g, alpha))


@function_of_one("Elu")
def elu(tape: Tape, node: ir.Node, x: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """1 or y + α."""
    return _exponential(tape, x, y, g, node.attributes.get_float("alpha", 1.0), 1.0)


@function_of_one("Selu")
def selu(tape: Tape, node: ir.Node, x: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """γ or y + αγ."""
    alpha, gamma = node.attributes.get_float("alpha", 1.6732632), node.attributes.get_float("gamma", 1.050701)
    return _exponential(tape, x, y, g, alpha, gamma)


def _exponential(tape: Tape, x: ir.Value, y: ir.Value, g: ir.Value, alpha: float, gamma: float) -> ir.Value:
    below = tape.mul(g, tape.add(y, alpha * gamma))
    positive = tape.emit("Greater", x, tape.constant(0))
    return tape.add(tape.where(positive, tape.mul(g, gamma)), tape.where(tape.emit("Not", positive), below))


@rule("PRelu")
def prelu(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """x, or slope · x where x is negative."""
    y = tape.repeat(node, inputs)
    x, slope = inputs

    def pullback(g: ir.Value) -> Gradients:
        below = tape.where(tape.emit("Less", x, tape.constant(0)), g)
        gx = tape.add(tape.sub(g, below), tape.mul(below, slope)) if tape.wants(x) else None
        if not tape.wants(slope):
            return [gx, None]
        return [gx, tape.sum_to(tape.mul(below, x), tape.shape(y), tape.shape(slope))]

    return y, pullback


@rule("Clip")
def clip(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """To what lies between the bounds."""
    y = tape.repeat(node, inputs)
    x = inputs[0]
    bounds = [inputs[index] if len(inputs) > index else None for index in (1, 2)]
    if any(tape.wants(bound) for bound in bounds):
        raise NoGradientError("bounds that are trained")

    def pullback(g: ir.Value) -> Gradients:
        for bound, comparison in zip(bounds, ("Greater", "Less"), strict=True):
            if bound is not None:
                g = tape.where(tape.emit(comparison, x, bound), g)
        return [g, *(None for _ in inputs[1:])]

    return y, pullback


@function_of_one("Sigmoid")
def sigmoid(tape: Tape, _: ir.Node, __: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """Its slope is y (1 − y)."""
    return tape.mul(g, tape.sub(y, tape.mul(y, y)))


@function_of_one("Tanh")
def tanh(tape: Tape, _: ir.Node, __: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """1 − y²."""
    return tape.sub(g, tape.mul(g, tape.mul(y, y)))


@function_of_one("Exp")
def exp(tape: Tape, _: ir.Node, __: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """The function itself."""
    return tape.mul(g, y)


@function_of_one("Log")
def log(tape: Tape, _: ir.Node, x: ir.Value, __: ir.Value, g: ir.Value) -> ir.Value:
    """1 / x."""
    return tape.div(g, x)


@function_of_one("Sqrt")
def sqrt(tape: Tape, _: ir.Node, __: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """1 / 2y."""
    return tape.div(tape.mul(g, 0.5), y)


@function_of_one("Neg")
def neg(tape: Tape, _: ir.Node, __: ir.Value, ___: ir.Value, g: ir.Value) -> ir.Value:
    """−1."""
    return tape.emit("Neg", g)


@function_of_one("Abs")
def absolute(tape: Tape, _: ir.Node, x: ir.Value, __: ir.Value, g: ir.Value) -> ir.Value:
    """The sign."""
    return tape.mul(g, tape.emit("Sign", x))


@function_of_one("Reciprocal")
def reciprocal(tape: Tape, _: ir.Node, __: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """−y²."""
    return tape.emit("Neg", tape.mul(g, tape.mul(y, y)))


@function_of_one("Softplus")
def softplus(tape: Tape, _: ir.Node, x: ir.Value, __: ir.Value, g: ir.Value) -> ir.Value:
    """The sigmoid."""
    return tape.mul(g, tape.emit("Sigmoid", x))


@function_of_one("Erf")
def erf(tape: Tape, _: ir.Node, x: ir.Value, __: ir.Value, g: ir.Value) -> ir.Value:
    """2/√π · exp(−x²)."""
    bell = tape.emit("Exp", tape.emit("Neg", tape.mul(x, x)))
    return tape.mul(g, tape.mul(bell, 2 / np.sqrt(np.pi)))


@function_of_one("Gelu")
def gelu(tape: Tape, node: ir.Node, x: ir.Value, _: ir.Value, g: ir.Value) -> ir.Value:
    """x Φ(x): Φ(x) + x φ(x). With tanh for Φ: x (1 + t) / 2, t = tanh(√(2/π) (x + 0.044715 x³))."""
    if node.attributes.get_string("approximate") == "tanh":
        scale, squared = np.sqrt(2 / np.pi), tape.mul(x, x)
        t = tape.emit("Tanh", tape.mul(tape.mul(x, tape.add(tape.mul(squared, 0.044715), 1.0)), scale))
        inner = tape.mul(tape.add(tape.mul(squared, 3 * 0.044715), 1.0), scale)
        rise = tape.mul(tape.mul(x, inner), tape.sub(tape.constant(1), tape.mul(t, t)))
        return tape.mul(g, tape.mul(tape.add(tape.add(t, 1.0), rise), 0.5))
    whole = tape.mul(tape.add(tape.emit("Erf", tape.mul(x, 1 / np.sqrt(2))), 1.0), 0.5)
    bell = tape.mul(tape.emit("Exp", tape.mul(tape.mul(x, x), -0.5)), 1 / np.sqrt(2 * np.pi))
    return tape.mul(g, tape.add(whole, tape.mul(x, bell)))


@function_of_one("HardSigmoid")
def hard_sigmoid(tape: Tape, node: ir.Node, _: ir.Value, y: ir.Value, g: ir.Value) -> ir.Value:
    """α between 0 and 1."""
    g = tape.where(
        tape.emit("Greater", y, tape.constant(0)), tape.mul(g, node.attributes.get_float("alpha", 0.2))
    )
    return tape.where(tape.emit("Less", y, tape.constant(1)), g)


@function_of_one("HardSwish")
def hard_swish(tape: Tape, _: ir.Node, x: ir.Value, __: ir.Value, g: ir.Value) -> ir.Value:
    """0 below −3, 1 above 3, x / 3 + 1/2 between."""
    above = tape.emit("GreaterOrEqual", x, tape.constant(3))
    between = tape.emit("Not", tape.emit("Or", above, tape.emit("LessOrEqual", x, tape.constant(-3))))
    slope = tape.add(tape.mul(x, 1 / 3), 0.5)
    return tape.add(tape.where(above, g), tape.where(between, tape.mul(g, slope)))


@function_of_one("Mish")
def mish(tape: Tape, _: ir.Node, x: ir.Value, __: ir.Value, g: ir.Value) -> ir.Value:
    """t + x σ(x) (1 − t²), t = tanh(softplus(x))."""
    t = tape.emit("Tanh", tape.emit("Softplus", x))
    rise = tape.mul(tape.mul(x, tape.emit("Sigmoid", x)), tape.sub(tape.constant(1), tape.mul(t, t)))
    return tape.mul(g, tape.add(t, rise))
