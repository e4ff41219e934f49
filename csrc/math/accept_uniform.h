// The uniform by which mala_accept and lookahead_verify accept.
#pragma once

#include "normal.h"
#include "philox.h"

namespace ARDIFF_NS {

/// log of the accept uniform at a sample's address.
ARDIFF_HD float log_accept_uniform(int64_t key, int64_t stream, int32_t draw) {
  uint32_t w0 = 0, w1 = counter_word(draw, kAcceptUniform);
  uint32_t w2 = low_word(stream), w3 = high_word(stream);
  philox(w0, w1, w2, w3, low_word(key), high_word(key));
  return -0.5f * neg_two_log<float>(w0);
}

}  // namespace ARDIFF_NS
