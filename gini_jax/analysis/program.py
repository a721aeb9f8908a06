"""Figures of a compiled program: memory, operations, collectives, cycles."""

import math
import re
from collections import defaultdict
from typing import Any

_ITEM_BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
# Named scopes of the step that are reported as its parts.
_PARTS = ("augment", "stem", r"stage\d+", "head", "terms", "optimizer")


def figures(compiled: Any) -> dict[str, Any]:
    """Figures of a compiled program: memory, operations, collectives, cycles.

    Args:
        compiled: a compiled training step.

    Returns:
        `argument_bytes`, `temporary_bytes` and `flops` of one device in one step; `all_reduces`;
        `all_reduce_bytes` and `terms_all_reduce_bytes`, which a device contributes in one step;
        `estimated_cycles`, the compiler's estimate by part, empty if it makes none.
    """
    memory = compiled.memory_analysis()
    program = counted_lines(compiled.as_text())
    reductions = all_reduces(program)
    operands = [operand for operands in reductions for operand in operands]
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": dict(compiled.cost_analysis() or {}).get("flops"),
        "all_reduces": len(reductions),
        "all_reduce_bytes": sum(size for _, size in operands),
        "terms_all_reduce_bytes": sum(
            size for scope, size in operands if part_of(scope)[0] == "terms"
        ),
        "estimated_cycles": estimated_cycles(program),
    }


def all_reduces(program: list[tuple[int, str]]) -> list[list[tuple[str, int]]]:
    """Scope and bytes of every operand of each all-reduce of a program; see `counted_lines`.

    Examples:
        >>> line = '%a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%b, %c), metadata={op_name="f/x"}'
        >>> all_reduces([(1, line)])
        [[('f/x', 24), ('f/x', 8)]]
        >>> all_reduces([(1, line.replace("f/x", "f/(x:y)"))])  # joined by the compiler
        [[('f/(x', 24), ('y)', 8)]]
    """
    found = []
    for times, line in program:
        match = re.search(r" = (.*?) all-reduce(?:-start)?\(", line)
        if match:
            operands = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match.group(1))
            sizes = [
                _ITEM_BYTES[kind] * math.prod(map(int, filter(None, dims.split(","))))
                for kind, dims in operands
            ]
            scopes = _scope(line).split(":")
            if len(scopes) != len(sizes):
                scopes = [_scope(line)] * len(sizes)
            found += [list(zip(scopes, sizes, strict=True))] * times
    return found


def estimated_cycles(program: list[tuple[int, str]]) -> dict[str, dict[str, int]]:
    """The compiler's cycle estimates, summed by part of the step, forward and backward.

    Collectives have no estimate.

    Args:
        program: see `counted_lines`.
    """
    cycles: dict[str, dict[str, int]] = defaultdict(lambda: {"forward": 0, "backward": 0})
    for times, line in program:
        match = re.search(r'"estimated_cycles":"(\d+)"', line)
        if match:
            part, direction = part_of(_scope(line))
            cycles[part][direction] += int(match.group(1)) * times
    order = sorted(cycles, key=lambda part: -sum(cycles[part].values()))
    return {part: cycles[part] for part in order}


def part_of(scope: str) -> tuple[str, str]:
    """Part of the step and direction of an operation, by its scope.

    Examples:
        >>> part_of("jit(f)/transpose(jvp(ResNet))/stage2/stage2_block1/conv1/conv/conv")
        ('stage2', 'backward')
        >>> part_of("jit(f)/jvp(ResNet)/stage2/stage2_block1/conv1/norm/psum")
        ('batch norm', 'forward')
        >>> part_of("jit(f)/jvp(terms)/psum")
        ('terms', 'forward')
    """
    direction = "backward" if "transpose(" in scope else "forward"
    if "/norm/" in scope:  # operations fused into a convolution count as the convolution's
        return "batch norm", direction
    for name in _PARTS:
        match = re.search(rf"(?:^|[/(])({name})(?:[/)]|$)", scope)
        if match:
            return match.group(1), direction
    return "other", direction


def _scope(line: str) -> str:
    match = re.search(r'op_name="([^"]*)"', line)
    return match.group(1) if match else ""


def counted_lines(program: str) -> list[tuple[int, str]]:
    """The lines of a compiled program, each with how often a step runs it.

    Only the bodies of counted loops, including nested ones, run more than once.

    Examples:
        >>> program = '''
        ... %body (p: s32[]) -> s32[] {
        ...   work
        ... }
        ... %condition (p: s32[]) -> pred[] {
        ...   %c = s32[] constant(3)
        ... }
        ... ENTRY %main (p: s32[]) -> s32[] {
        ...   %w = s32[] while(%p), condition=%condition, body=%body
        ... }'''
        >>> [times for times, line in counted_lines(program) if "work" in line]
        [3]
    """
    lines, computation = [], ""
    counts: dict[str, int] = {}
    loops: dict[str, tuple[str, str]] = {}  # body -> what contains the loop, its condition
    for line in program.splitlines():
        if match := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = match.group(1)
        if match := re.search(r" constant\((\d+)\)", line):
            counts[computation] = int(match.group(1))
        if match := re.search(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
            loops[match.group(2)] = (computation, match.group(1))
        lines.append((computation, line))

    def times(computation: str) -> int:
        if computation not in loops:
            return 1
        outside, condition = loops[computation]
        return counts.get(condition, 1) * times(outside)

    return [(times(computation), line) for computation, line in lines]
