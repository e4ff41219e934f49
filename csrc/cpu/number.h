// A number as a type, for functions that need it while they compile.
#pragma once

#include <type_traits>

namespace ARDIFF_NS {

template <int kNumber>
using Number = std::integral_constant<int, kNumber>;

}  // namespace ARDIFF_NS
