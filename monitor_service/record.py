"""The base of what is remembered about a run: checked when it is read, and plain attributes from then on."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A row's JSON that each batch moves on. NaN and infinity are texts in it."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    # pydantic's own looks each name up at each assignment, which costs more than the folding
    __setattr__ = object.__setattr__
