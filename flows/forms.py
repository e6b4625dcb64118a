"""Types of the parameters of deployed flows: what Prefect's form accepts. The flows' docstrings say what each means."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Text = Annotated[str, Field(min_length=1)]
Changes = list[Annotated[str, Field(pattern=r"^[A-Za-z_.]+=")]]
Conditions = list[Text]
Generations = Annotated[int | None, Field(ge=1)]
Seeds = Annotated[int | None, Field(ge=1)]
Trainings = Annotated[int, Field(ge=1)]
FreshSeeds = Annotated[int | None, Field(ge=2)]
Hours = Annotated[float, Field(gt=0)]
GpuHours = Annotated[float | None, Field(gt=0)]
Dollars = Annotated[float | None, Field(ge=0)]
