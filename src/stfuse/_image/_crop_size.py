"""How large a crop is: microns, full-resolution pixels or spot diameters become pixels of one image."""

from __future__ import annotations

from dataclasses import dataclass

from stfuse._check import check_number
from stfuse._image._section import Section

SPOTS = 3.0  # diameters: a Visium spot and its nearest surroundings


@dataclass(frozen=True)
class CropSize:
    """What the user asks for; None everywhere = the side of tiles, or three spot diameters."""

    um: float | None = None
    px: float | None = None
    scale: float | None = None

    def check(self) -> None:
        """Refuse more than one size, and what is none."""
        given = {"crop_um": self.um, "crop_px": self.px, "crop_scale": self.scale}
        for name, value in given.items():
            check_number(name, value, above=0, optional=True)
        several = [name for name, value in given.items() if value is not None]
        if len(several) > 1:
            raise ValueError(f"Give one size of crops, not {' and '.join(several)}.")

    def sides(self, section: Section) -> tuple[float, float]:
        """Width and height of the crops of a section in full-resolution pixels."""
        if self.px is not None:
            return float(self.px), float(self.px)
        if self.um is not None:
            if section.mpp is None:
                raise ValueError(
                    f"crop_um={self.um:g} needs the size of a pixel, and nothing tells it for section {section.name!r}: "
                    "neither the image file, nor the scale factors (microns_per_pixel), nor a coordinate system in "
                    "microns, nor spots on the lattice of a known array. Give microns per full-resolution pixel, mpp=, "
                    "or the side in pixels, crop_px=."
                )
            return self.um / section.mpp[0], self.um / section.mpp[1]
        if section.spot is None:
            raise ValueError(
                f"The observations of section {section.name!r} have no size of their own (no spot_diameter_fullres, no "
                "circles or square tiles of one size): say how large crops are, with crop_um= (microns) or crop_px= "
                "(full-resolution pixels)."
            )
        scale = self.scale if self.scale is not None else (1.0 if section.tiles else SPOTS)
        return scale * section.spot * section.unit[0], scale * section.spot * section.unit[1]
