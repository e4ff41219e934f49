/* The step ops of ardiff on plain pointers: no torch, no Python, no state. C99 and C++.
 *
 * Every function that can fail returns an ardiff_status; ardiff_last_error() then says, for the
 * calling thread, what was wrong, what was expected and what to do. Arguments are checked before
 * anything is written. Functions may be called from several threads at once.
 *
 * What the ops compute stands in ardiff_kernels/ops/<op>/__init__.py; results are those of the
 * Python ops to the bit, on every instruction set and with any number of threads.
 */
#ifndef ARDIFF_H
#define ARDIFF_H

#include <stdint.h>

#if defined(ARDIFF_STATIC)
#define ARDIFF_API
#else
#define ARDIFF_API __attribute__((visibility("default")))
#endif

/* Grows when a program built against an older header would no longer work with the library. */
#define ARDIFF_ABI_VERSION 2

#define ARDIFF_COEF_COLUMNS 20

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ardiff_status {
  ARDIFF_OK = 0,
  ARDIFF_INVALID_ARGUMENT = 1, /* nothing was written */
  ARDIFF_UNSUPPORTED = 2,      /* ARDIFF_CPU_ISA names what this CPU cannot run */
  ARDIFF_FAILED = 3            /* out of memory or another error of the system */
} ardiff_status;

typedef enum ardiff_dtype {
  ARDIFF_FLOAT32 = 0,
  ARDIFF_FLOAT16 = 1,
  ARDIFF_BFLOAT16 = 2
} ardiff_dtype;

/* A [rows, columns] tensor, columns side by side and rows `row_stride` elements apart; row_stride 0
 * reads one row for all samples. data NULL: absent. */
typedef struct ardiff_input {
  const void* data;
  int64_t row_stride;
  int32_t dtype; /* ardiff_dtype */
} ardiff_input;

typedef struct ardiff_output {
  void* data;
  int64_t row_stride; /* at least the columns, where there are several rows */
  int32_t dtype;      /* ardiff_dtype */
} ardiff_output;

/* One value for all samples (count 1) or one for each (count rows). data NULL: absent. */
typedef struct ardiff_ints {
  const int32_t* data;
  int64_t count;
} ardiff_ints;

typedef struct ardiff_floats {
  const float* data;
  int64_t count;
} ardiff_floats;

/* What the steps have in common. Begin with ARDIFF_STEP_ARGS_INIT: all else zero. */
typedef struct ardiff_step_args {
  uint64_t struct_size; /* sizeof(ardiff_step_args) of the header that the program was built with */

  int64_t rows;          /* samples, B >= 0 */
  int64_t columns;       /* elements of a sample, d >= 1 */
  const float* coef;     /* the table [coef_rows, 20]: ardiff.solver(...).coef() in Python */
  int64_t coef_rows;     /* T >= 1 */
  ardiff_ints row;       /* each sample's row; outside [0, T) it is finished and copied unchanged */
  ardiff_ints draw;      /* each sample's step count, which addresses the noise */
  int64_t key;           /* seed */
  const int64_t* stream; /* [rows]: sample_id * 2^20 + patch */
  ardiff_input model_out;
  int64_t model_columns; /* columns, or twice as many with learned-range variance; 0: columns */

  /* Options; zero: none. */
  ardiff_input uncond_out, uncond_out2; /* of guidance: like model_out */
  ardiff_floats guidance, guidance2;    /* u + w (c - u), u2 + w2 (u - u2) + w (c - u) */
  ardiff_floats noise_scale;            /* temperature of the step noise */
  ardiff_input noise, noise2;           /* float32 normals in place of the addressed ones */
  float x0_clamp;                       /* of diffusion_step: bound on the data prediction */
  int32_t threads;                      /* that the call may use; 0: one */
  ardiff_output z_model;                /* bfloat16 copy of the new state */
} ardiff_step_args;

#ifdef __cplusplus
#define ARDIFF_STEP_ARGS_INIT \
  ardiff_step_args { sizeof(ardiff_step_args) }
#else
#define ARDIFF_STEP_ARGS_INIT ((ardiff_step_args){.struct_size = sizeof(ardiff_step_args)})
#endif

/* One row of a kinetic sampler, in place: position z, velocity v and anchor, float32. Two normals
 * per element. */
ARDIFF_API ardiff_status ardiff_uld_step(ardiff_output z, ardiff_output v, ardiff_output anchor,
                                         const ardiff_step_args* args);

/* One row of a diffusion sampler, in place: state x and memory, float32 or bfloat16. memory_columns
 * is args->columns, or two or three times as many with more memories. x0 (data NULL: not wanted)
 * receives the data prediction. One normal per element. */
ARDIFF_API ardiff_status ardiff_diffusion_step(ardiff_output x, ardiff_output memory,
                                               int64_t memory_columns, ardiff_output x0,
                                               const ardiff_step_args* args);

/* Addressed normals, out[b, i], float32. counter is 4 draw + purpose: 1 for the initial state. */
ARDIFF_API ardiff_status ardiff_philox_normal(ardiff_output out, int64_t rows, int64_t columns,
                                              int64_t key, int64_t counter, const int64_t* stream);

/* Increments of Brownian paths, (W(end) - W(start)) / sqrt(|end - start|), standard normals,
 * float32. Times, one for all samples or one each, lie in [0, 2^32), here the signal-to-noise ratio
 * alpha^2 / sigma^2; equal ones give zeros. The normals of a step in place of the addressed ones.
 */
ARDIFF_API ardiff_status ardiff_brownian_increment(ardiff_output out, int64_t rows, int64_t columns,
                                                   int64_t key, const int64_t* stream,
                                                   ardiff_floats start, ardiff_floats end);

/* Underdamped Langevin with the gradient G of -log p frozen over a step tau at friction gamma:
 *   z' = z + z_from_v v + z_from_grad G + z_1 n1 + z_2 n2
 *   v' = v_from_v v + v_from_grad G + v_1 n1 */
typedef struct ardiff_uld_coefs {
  double z_from_v, z_from_grad, v_from_v, v_from_grad;
  double var_z, cov_zv, var_v; /* of the noise */
  double z_1, z_2, v_1;
} ardiff_uld_coefs;

ARDIFF_API ardiff_status ardiff_uld_coefficients(double gamma, double tau, ardiff_uld_coefs* out);

/* Columns of a row of ardiff_uld_step's table; *_LO hold what float32 misses of the column before:
 * see ardiff_split. */
enum ardiff_uld_column {
  ARDIFF_Z_Z,
  ARDIFF_Z_Z_LO,
  ARDIFF_Z_D,
  ARDIFF_Z_V,
  ARDIFF_Z_O,
  ARDIFF_Z_1,
  ARDIFF_Z_2,
  ARDIFF_V_Z,
  ARDIFF_V_D,
  ARDIFF_V_V,
  ARDIFF_V_O,
  ARDIFF_V_1,
  ARDIFF_A_Z,
  ARDIFF_A_Z_LO
};

/* value = high[0] + low[0], each float32. */
ARDIFF_API void ardiff_split(double value, float* high, float* low);

ARDIFF_API const char* ardiff_version(void); /* "0.1.0" */
ARDIFF_API int ardiff_abi_version(void);     /* of the library; compare with ARDIFF_ABI_VERSION */

/* What went wrong in the calling thread's last call that failed; "" before any. */
ARDIFF_API const char* ardiff_last_error(void);

/* scalar, avx2 or avx512: the best of this CPU, or what ARDIFF_CPU_ISA names ("unavailable" where
 * that cannot be had). */
ARDIFF_API const char* ardiff_cpu_isa(void);

/* Switches later calls of all threads; "" chooses the best. 0: done, 1: unknown name, 2: this CPU
 * lacks it. */
ARDIFF_API int ardiff_set_cpu_isa(const char* name);

#ifdef __cplusplus
}
#endif

#endif
