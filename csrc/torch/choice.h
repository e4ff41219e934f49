// Which backend serves a call. The kernels of a library serve every call without asking while no
// context of the process forces another backend; else they ask Python, which knows the context of
// the caller (ardiff_kernels/dispatch/backends.py), at every call. So the registration with torch's
// dispatcher never changes.
#pragma once

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <new>
#include <string>

#include "arg.h"

#ifndef ARDIFF_BACKEND
#define ARDIFF_BACKEND "cpu"
#endif

namespace ardiff {

/// How many contexts of the process force a backend other than this library.
inline std::atomic<int64_t> forcing{0};

/// Calls an op of the namespace ardiff_choice, which Python implements; false where it raised.
inline bool call_python(const std::string& op, StableIValue* stack) {
  const std::string name = "ardiff_choice::" + op;
  return torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS;
}

/// Whether this library is to serve `op` in the context of the caller.
inline bool serves(const char* op) {
  StableIValue stack[] = {torch::stable::detail::from(std::string(op)),
                          torch::stable::detail::from(std::string(ARDIFF_BACKEND))};
  return call_python("serves", stack) && torch::stable::detail::to<bool>(stack[0]);
}

/// The message of the error that a backend in Python raised. It cannot pass through C++ itself.
inline std::string python_failure() {
  StableIValue stack[1];
  if (!call_python("failure", stack)) return "ardiff: the forced backend failed";
  return torch::stable::detail::to<std::string>(stack[0]);
}

/// A call of `op`: its arguments on `stack`, in place of which its results are put.
template <class Kernel>
void serve(const char* op, Kernel kernel, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  if (forcing.load(std::memory_order_relaxed) != 0 && !serves(op)) {
    if (!call_python(op, stack)) throw std::runtime_error(python_failure());
    return;
  }
  try {
    kernel(stack, inputs, outputs);
  } catch (const ArgumentError& error) {
    fail(op, ": ", error.what());
  } catch (const std::bad_alloc&) {
    fail(op, ": out of memory on the host");
  }
}

/// Registers a kernel of `op` with the library `m`.
#define ARDIFF_IMPL(m, op, function)                                      \
  m.impl(op, [](StableIValue* stack, uint64_t inputs, uint64_t outputs) { \
    ardiff::serve(op, TORCH_BOX(function), stack, inputs, outputs);       \
  })

}  // namespace ardiff

/// Told by Python: this many contexts more (or, negative, fewer) force another backend.
extern "C" __attribute__((visibility("default"), used)) inline void ardiff_count_forcing(
    int64_t contexts) {
  ardiff::forcing.fetch_add(contexts);
}
