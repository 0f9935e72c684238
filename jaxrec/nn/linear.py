"""Linear layers and norms, in the layouts that are fast."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.devices.mesh import on_mesh, replicated


def linear_layer(init, dtype, *, bias: bool = True):
    """nnx.Linear with this kernel initialiser, computing in `dtype`, parameters in float32."""
    return functools.partial(
        nnx.Linear, kernel_init=init, dtype=dtype, use_bias=bias, dot_general=_dot_general
    )


def _dot_general(x, kernel, dimension_numbers, precision=None, out_sharding=None):
    """`product` in the form that nnx.Linear calls."""
    del dimension_numbers, precision, out_sharding
    return product(x[None], kernel)[0] if x.ndim == 2 else product(x, kernel)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel; the kernel's gradient is summed row by row of the batch, then over rows.

    Summed over all positions at once, XLA turns a factor round before the product, on a CPU at
    twice the cost of the product itself.

    Args:
      x: [B, L, I].
      kernel: [I, O].

    Returns:
      [B, L, O] in the dtype of x, accumulated in float32 at least.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum('bli,io->blo', x, kernel, preferred_element_type=wide).astype(x.dtype)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(residuals, g):
    x, kernel = residuals
    wide = jnp.promote_types(x.dtype, jnp.float32)
    d_x = jnp.einsum('blo,io->bli', g, kernel, preferred_element_type=wide)
    # a matrix per row takes no more memory than x or g
    if len(x) > 1 and min(kernel.shape) <= x.shape[1]:
        d_kernel = jnp.einsum('bli,blo->bio', x, g, preferred_element_type=wide).sum(0)
    else:
        whole = jax.P(None, None) if on_mesh() else None
        d_kernel = jnp.einsum('bli,blo->io', x, g, preferred_element_type=wide, out_sharding=whole)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def two_layers(kernel, dim: int, rngs: nnx.Rngs) -> nnx.List:
    """Kernels [dim, dim] of `through`, by this initialiser."""
    return nnx.List(nnx.Param(kernel(rngs.params(), (dim, dim), jnp.float32)) for _ in 'io')


def through(layers: nnx.List, x: jax.Array) -> jax.Array:
    """A projection of vectors [.., dim] by `two_layers`: linear, ReLU, linear."""
    inner, outer = (replicated(kernel[...]) for kernel in layers)
    return jax.nn.relu(x @ inner) @ outer


def layer_norm(epsilon: float, dtype):
    """nnx.LayerNorm with `epsilon` added to the variance; statistics in float32."""
    return functools.partial(nnx.LayerNorm, epsilon=epsilon, use_fast_variance=False, dtype=dtype)


def rms_norm(epsilon: float, dtype):
    """nnx.RMSNorm with `epsilon` added to the mean square; statistics in float32."""
    return functools.partial(nnx.RMSNorm, epsilon=epsilon, dtype=dtype)
