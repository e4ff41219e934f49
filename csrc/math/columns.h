// The columns of the ops' coefficient tables. Written by
// `python -m ardiff_kernels.ops._shared.columns` from the COLUMNS of
// ardiff_kernels/ops/<op>/__init__.py: change them there.
#pragma once

namespace ardiff {

/// Of every table; those that an op does not name are not read.
constexpr int kColumns = 20;

/// Of uld_step.
struct UldColumn {
  enum {
    z_z,
    z_z_lo,
    z_d,
    z_v,
    z_o,
    z_1,
    z_2,
    v_z,
    v_d,
    v_v,
    v_o,
    v_1,
    a_z,
    a_z_lo,
  };
};

/// Of diffusion_step.
struct DiffusionColumn {
  enum {
    p_x,
    p_o,
    x_x,
    x_x_lo,
    x_0,
    x_m,
    x_d,
    x_n,
    m_x,
    m_x_lo,
    m_0,
    lv_min,
    lv_max,
    s_x,
    s_m,
    s_2,
    x_3,
    t_2,
    x_u,
    m_u,
  };
};

/// Of mala_accept.
struct MalaAcceptColumn {
  enum {
    g_z,
    g_d,
    g_o,
    s_z,
    s_o,
    c_g,
    c_d,
    c_v,
    r2,
    R2,
  };
};

/// Of the plan of lookahead_draft and lookahead_verify.
struct LookaheadColumn {
  enum {
    p_x,
    p_o,
    o_0,
    r_x,
    r_0,
    g_0,
    g_s,
    g_max,
    couples,
    unit,
    calls,
  };
};

}  // namespace ardiff
