// The loader: a NumPy array, a torch tensor or any DLPack producer becomes an Array, with every check that does not
// need the data. No framework's header.
#pragma once

#include "binding/array.h"

namespace fastrl {

// type(x).__dlpack_c_exchange_api__ of a framework's tensor type, or null. Remembered for a few types; the GIL guards
// it.
const DLPackExchangeAPI* exchange_api(PyTypeObject* type);

[[noreturn]] void raise_no_data(PyObject* object, const char* where);

// `where` is "<op>: <argument>", the beginning of every error text.
Array load(PyObject* object, const char* where);

}  // namespace fastrl
