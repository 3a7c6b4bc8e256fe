"""Recipes: where a model comes from and what was done to it, as text that is read and never run."""

from torchgraft.recipe.building import build as build
from torchgraft.recipe.building import recipe_of as recipe_of
from torchgraft.recipe.building import steps_of as steps_of
from torchgraft.recipe.checking import CheckReport as CheckReport
from torchgraft.recipe.checking import check as check
from torchgraft.recipe.problem import Place as Place
from torchgraft.recipe.problem import Problem as Problem
from torchgraft.recipe.reader import parse as parse
from torchgraft.recipe.reading import read_recipe as read_recipe
from torchgraft.recipe.recipe import Recipe as Recipe

__all__ = [
    "CheckReport",
    "Place",
    "Problem",
    "Recipe",
    "build",
    "check",
    "parse",
    "read_recipe",
    "recipe_of",
    "steps_of",
]
