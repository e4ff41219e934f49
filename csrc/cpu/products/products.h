// The way in which products with packed weights are computed here.
#pragma once

#include "../isa.h"
#include "args.h"

namespace ardiff {

/// For weights of this type and this number of padded columns.
const Products& products_of(WeightType type, int64_t columns);

}  // namespace ardiff
