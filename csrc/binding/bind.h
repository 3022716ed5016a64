// What the bindings of every op need.
#pragma once

#include "binding/checks.h"
#include "binding/class.h"
#include "binding/contiguous.h"
#include "binding/registry.h"
#include "binding/results.h"
#include "binding/scalars.h"
#include "binding/threads.h"
