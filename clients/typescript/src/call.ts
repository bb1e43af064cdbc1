// The types of a call, taken from the OpenAPI document.
import type { paths } from "./schema.js";

export type Method = "get" | "post" | "put" | "patch" | "delete";

type Operation<P extends keyof paths, M extends Method> = NonNullable<paths[P][M]>;

type Full<M extends Method> = {
  [P in keyof paths]: [Operation<P, M>] extends [never] ? never : P;
}[keyof paths];

type Short<P> = P extends `/api/v1${infer Rest}` ? Rest : never;

/** The paths that have a method, without `/api/v1`. */
export type PathsWith<M extends Method> = Short<Full<M>>;

type At<M extends Method, S extends string> = `/api/v1${S}` extends infer P extends keyof paths ? Operation<P, M> : never;

type Parameters<O, Where extends string> = O extends { parameters: infer R }
  ? Where extends keyof R
    ? NonNullable<R[Where]>
    : never
  : never;

type BodyOf<O> = O extends { requestBody?: infer B }
  ? NonNullable<B> extends { content: { "application/json": infer J } }
    ? J
    : never
  : never;

type Json<R> = R extends { content: { "application/json": infer J } } ? J : R extends { content?: never } ? undefined : never;

type ResultOf<O> = O extends { responses: infer R }
  ? { [S in keyof R]: S extends 200 | 201 | 202 | 204 ? Json<R[S]> : never }[keyof R]
  : never;

/** What a call takes in its body. */
export type Body<M extends Method, S extends PathsWith<M>> = BodyOf<At<M, S>>;

/** What a call takes in its query. */
export type Query<M extends Method, S extends PathsWith<M>> = Parameters<At<M, S>, "query">;

/** What a call answers with. */
export type Result<M extends Method, S extends PathsWith<M>> = ResultOf<At<M, S>>;

/** A property that is there, and asked for, only if its type is not never. */
type Given<K extends string, T> = [T] extends [never] ? {} : {} extends T ? { [P in K]?: T } : { [P in K]: T };

/** Everything that a call can be given. */
export type CallOptions<M extends Method, S extends PathsWith<M>> = Given<"path", Parameters<At<M, S>, "path">> &
  Given<"query", Query<M, S>> &
  Given<"body", Body<M, S>> & {
    /** Headers beside those that the client sets: `If-Match`, `Idempotency-Key`. */
    headers?: Record<string, string>;
    signal?: AbortSignal;
  };
