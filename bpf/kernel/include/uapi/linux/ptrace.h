/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Asked for by BCC for tracing programs; nothing in it is needed here. */
