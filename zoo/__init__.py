"""Populations of trained networks: train them at once, keep every trajectory, read them fast."""

from zoo.layout import GroupAxis, LayoutMismatchError, ParamLayout, ParamSlot, SymmetryGroup

__all__ = ["GroupAxis", "LayoutMismatchError", "ParamLayout", "ParamSlot", "SymmetryGroup"]
