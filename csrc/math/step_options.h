// The optional tensors of the step ops, in the order of their schemas
// (ardiff_kernels/ops/{uld_step,diffusion_step}/__init__.py). The only list of them in C++:
// parameters, names, checks and kernel arguments follow from it. A new one is added here and used
// in the kernels; C programs give it as a field of ardiff_step_args (csrc/capi/ardiff.h).
#pragma once

/// OUTPUT(name): like the model output. VALUE(name): float32 [B] or [1]. NORMALS(name): float32 of
/// the state's shape.
#define ARDIFF_STEP_OPTIONS(OUTPUT, VALUE, NORMALS) \
  OUTPUT(uncond_out)                                \
  OUTPUT(uncond_out2)                               \
  VALUE(guidance)                                   \
  VALUE(guidance2)                                  \
  VALUE(noise_scale)                                \
  NORMALS(noise)

/// For a kind of option that the list's user passes by.
#define ARDIFF_NO_OPTION(name)
