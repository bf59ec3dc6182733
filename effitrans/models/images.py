"""Images as sequences: each patch (or pixel) becomes one element, read row by row.

Shapes: B batch, C channels, N patches.
"""

from torch import Tensor, nn

from effitrans.errors import UsageError
from effitrans.models.configuration import EffitransConfig


class PatchEmbedding(nn.Module):
    """pixel values [B, C, height, width] -> [B, N, hidden size], as in ViT (Dosovitskiy et al. 2021, equation 1)."""

    def __init__(self, config: EffitransConfig) -> None:
        super().__init__()
        assert config.image_shape is not None
        self.pixel_shape = (config.num_channels, *config.image_shape)
        self.patch_size = config.patch_size
        self.projection = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed the patches.

        Raises:
            UsageError: the images are not of the size in the config.
        """
        if tuple(pixel_values.shape[1:]) != self.pixel_shape:
            raise UsageError(
                f"pixel_values of shape {tuple(pixel_values.shape)}, expected (batch, {self.pixel_shape[0]}, "
                f"{self.pixel_shape[1]}, {self.pixel_shape[2]}): resize the images, or set num_channels and image_size"
            )
        side = self.patch_size
        patches_BNP = nn.functional.unfold(pixel_values, side, stride=side).transpose(1, 2)
        return self.projection(patches_BNP.to(self.projection.weight.dtype))
