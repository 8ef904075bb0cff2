"""Networks over grids of discrete tokens: images and videos behind a tokenizer."""

from flambeau.models.token_grid.conditions import ClassCondition, TextCondition
from flambeau.models.token_grid.llamagen import nar_from_llamagen
from flambeau.models.token_grid.nar import NAR
from flambeau.models.token_grid.query_decoder import QueryDecoder

__all__ = ["NAR", "ClassCondition", "QueryDecoder", "TextCondition", "nar_from_llamagen"]
